"""How a run is shown to people: live view, plain lines, status, and sinks for trackers."""

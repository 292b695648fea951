"""Shows a run to people: live view, plain lines, status, and sinks for trackers."""

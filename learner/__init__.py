"""The learner turns measurements into weights. It knows no actor process and no reward implementation."""

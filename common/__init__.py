"""What two or more roles must agree on: messages, seams, errors, mathematics, transport. Knows no role."""

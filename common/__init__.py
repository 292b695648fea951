"""The knowledge that several roles share: messages, seams, errors, mathematics, transport. Knows no role."""

"""Reward servers measure the media of rollout groups with rewards. They know nothing of training."""

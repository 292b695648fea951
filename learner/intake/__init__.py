"""From orders to measured groups: slots, orders, the join of rollouts with measurements, and evaluations."""

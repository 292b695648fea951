"""Order groups and receive them measured: slots, orders, the join of rollouts with measurements, and evaluations."""

"""Which pool sizes a run should have, predicted from what it measured."""

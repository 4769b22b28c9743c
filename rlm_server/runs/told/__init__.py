"""What a node's model is told: its rules, its task, the state of its environment, and what its code did."""

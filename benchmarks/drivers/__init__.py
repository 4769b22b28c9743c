"""The driver of each contestant: a process of its own, in an environment of its own, that measures when it is asked."""

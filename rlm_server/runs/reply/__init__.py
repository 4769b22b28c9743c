"""Reads what a node's model replies: the code to run, the answer in prose, and what there is to tell it instead."""

"""The graph of stages: what each needs, reads and makes; what is to be done; doing it; what lies where."""

"""What tests and benchmarks share: the system as processes, the simulator's truth, and what running costs.

Tests and `bench` import it and never each other; what is only tested or only measured stays with them.
"""

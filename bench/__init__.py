"""The roof: plans, runs, stores and tabulates benchmarks of attacks and certificates."""

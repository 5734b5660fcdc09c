"""Speed, each benchmark with its answer asserted before anything is timed: `python -m benchmarks`."""

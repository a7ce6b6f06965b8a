"""Ways to map cells to records: each offers `map(function, cells)` and yields records as they come."""

"""Where state lives: each store answers `observe` with what it knows of a batch."""

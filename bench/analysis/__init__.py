"""What can be learned from the records beyond the bracket: games, landscapes, claims."""

"""What a person or `ray job submit` starts: one file a command."""

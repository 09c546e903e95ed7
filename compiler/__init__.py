"""The IR and the machinery around it: knows no pass and no backend by name."""

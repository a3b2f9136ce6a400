"""What a person would write."""

"""Task heads: one file per task, each composing an example and reading the filled row back."""

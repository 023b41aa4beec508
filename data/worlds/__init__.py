"""Generated worlds: endless pictures with true captions and answers."""

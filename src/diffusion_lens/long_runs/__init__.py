"""What a run of many prompts needs: batches, seeds, a lock, and what it depends on as text."""

"""methods × settings × seeds -> trials, each resumable -> a table, a picture, and what it cost."""

"""`cliptune run`: trains the lanes of a study by starting a command of the user's, here, one lane after another."""

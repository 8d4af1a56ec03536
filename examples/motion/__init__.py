"""The motion demo: clips, training, evaluation."""

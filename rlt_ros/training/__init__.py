"""From demonstrations and a VLA to an RL token: samples, embeddings, training, and what the token is worth."""

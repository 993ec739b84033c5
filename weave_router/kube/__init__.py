"""Kubernetes: who is a peer, whose a block is, and the token, as objects of the API server say."""

"""What a person types. Talks to a running router through api/ only."""

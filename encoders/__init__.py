"""Encoders turn a picture into tokens; projectors map these to the backbone's width."""

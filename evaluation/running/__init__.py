"""Runs a suite: encoding, devices, one task after the other."""

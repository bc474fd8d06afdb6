"""Frozen networks and the stage that embeds a pool with them."""

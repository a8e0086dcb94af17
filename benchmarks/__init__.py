"""What Accord claims, and the scripts that measure it with a peer beside it. Nothing here is imported by the package."""

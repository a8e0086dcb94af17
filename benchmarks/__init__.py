"""What Accord claims, and the scripts that measure it beside a peer. The package imports nothing from here."""

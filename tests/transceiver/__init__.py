"""Tests of `transceiver`: plain ones of the pure parts, calls on loopback for the rest."""

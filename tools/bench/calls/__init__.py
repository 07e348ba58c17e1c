"""What `shunt bench transceiver` places calls with, and whom it calls: a lean client, two bots."""

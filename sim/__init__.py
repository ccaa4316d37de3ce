"""What runs a unit without hardware: reference model, simulation backends, recorded cases."""

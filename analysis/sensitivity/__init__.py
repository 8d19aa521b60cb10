"""What changing one layer would gain at the output."""

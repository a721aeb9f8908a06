"""What the command line can do: one module per mode, with `FLAGS` and `main(config, workdir)`."""

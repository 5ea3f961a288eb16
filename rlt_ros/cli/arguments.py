"""Checks of arguments that several subcommands have; what is wrong is wrong usage, exit code 2."""


def require_device(device: str) -> None:
    """UsageError when torch cannot compute there."""
    from rlt_ros.cli.main import UsageError
    from rlt_ros.core import device as devices

    try:
        devices.require_device(device, "--device")
    except ValueError as error:
        raise UsageError(str(error)) from None

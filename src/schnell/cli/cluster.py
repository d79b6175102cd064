"""`schnell cluster`: put engine replicas on a Ray cluster, see how they are, take them away."""

import signal
import threading
from typing import TYPE_CHECKING, Annotated, Final

import typer

from schnell.cli.database import DataDir
from schnell.cli.output import AsJson, print_rows, say

if TYPE_CHECKING:
    from schnell.settings import Settings

_LOOK_SECONDS: Final = 5.0
cluster_app = typer.Typer(help="The replicas of a cluster, for SCHNELL_RUNNER=ray.", no_args_is_help=True)
Address = Annotated[str | None, typer.Option(help="HOST:PORT of the cluster's head [default: SCHNELL_RAY_ADDRESS].")]


@cluster_app.command("up")
def up_command(
    address: Address = None,
    data_dir: DataDir = None,
    replicas: Annotated[int | None, typer.Option(min=0, help="The least number of replicas.")] = None,
    most: Annotated[int | None, typer.Option(min=1, help="The most, as load asks for them.")] = None,
    detach: Annotated[bool, typer.Option(help="End once they draw, and leave them there.")] = False,
) -> None:
    """Start the engine's replicas on a cluster, and stay to put them there again if its head is started anew.

    Settings of the model and of pictures go to the replicas from here; secrets they read where they run.
    """
    from schnell.bootstrap import read_settings
    from schnell.bootstrap.cluster import deploy_replicas, prepare_ray
    from schnell.errors import StartError
    from schnell.serving.ray_cluster import head_of, is_deployed, join, leave

    settings = read_settings(ray_address=address, data_dir=data_dir, replicas_min=replicas, replicas_max=most)
    prepare_ray()
    join(_head_in(settings))
    say(f"starting replicas of {settings.model} on {settings.ray_address} …")
    deploy_replicas(settings)
    say("the replicas draw")
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    while not detach and not stopped.wait(_LOOK_SECONDS):
        if not is_deployed(head_of()):
            # as a gateway does: no process comes back to a head that was started anew
            raise StartError("the replicas, or the cluster's head, are gone: start this command again")
    leave()


@cluster_app.command("status")
def status_command(address: Address = None, as_json: AsJson = False) -> None:
    """The replicas that take jobs now, with their work, memory plan and LoRAs."""
    from schnell.bootstrap import read_settings
    from schnell.bootstrap.cluster import prepare_ray
    from schnell.serving.ray_cluster import look_at_replicas

    settings = read_settings(ray_address=address)
    prepare_ray()
    rows = look_at_replicas(_head_in(settings))
    print_rows(rows, ("replica", "host", "queue_seconds", "queued", "loras", "memory_used", "memory"), as_json=as_json)


@cluster_app.command("down")
def down_command(address: Address = None) -> None:
    """Take the replicas away; each draws what it has first. The cluster itself stays."""
    from schnell.bootstrap import read_settings
    from schnell.bootstrap.cluster import prepare_ray
    from schnell.serving.ray_cluster import join, leave, undeploy

    settings = read_settings(ray_address=address)
    prepare_ray()
    join(_head_in(settings))
    undeploy()
    leave()


def _head_in(settings: "Settings") -> str:
    """Where the cluster's head is. Without an address Ray would start a cluster, which is for servers to do."""
    from schnell.errors import ConfigurationError

    if not settings.ray_address:
        raise ConfigurationError("name the cluster: SCHNELL_RAY_ADDRESS, or --address HOST:PORT of its head")
    return settings.ray_address

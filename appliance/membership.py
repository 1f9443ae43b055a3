"""A box as a member of its fleet: the parts of deployment, joined.

Apart from the rest of the composition because of what it loads: the ``tuf`` library takes some 8 MB, which a box
without a fleet has better use for.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path

from appliance.config import Config
from appliance.control import Control
from appliance.deploy.download import Downloads
from appliance.deploy.fleet_topics import FleetTopics
from appliance.deploy.store import Store
from appliance.deploy.trust import Trust, read_root
from appliance.deployer import Deployer
from appliance.errors import DeviceError
from appliance.inference.broker import Broker
from appliance.rollout.admitting import admit, load_slot
from appliance.sandbox.admission.admit import Admission
from appliance.serving import Serving
from appliance.standing import Report

log = logging.getLogger(__name__)


@asynccontextmanager
async def membership(
    config: Config,
    device: str,
    directory: Path,
    *,
    control: Control,
    serving: Serving,
    admission: Admission,
    inference: Broker,
    report: Report,
    taken: Collection[str],
) -> AsyncIterator[Deployer | None]:
    """Handlers come from the fleet while the block lasts; those that were active have been started.

    ``directory`` is for what is deployed, ``taken`` are names of handlers that the configuration gives. ConfigError
    where the fleet's root is none. Where the disk fails nothing is deployed, None, and the box does the rest.
    """
    fleet = config.fleet
    topics = FleetTopics(fleet.prefix, fleet.name)
    try:
        store = await asyncio.to_thread(Store, directory, fleet.quota_mb << 20)
        trust = await asyncio.to_thread(lambda: Trust(directory, read_root(fleet)))
    except DeviceError as error:
        log.warning("event=nothing_deployed error=%s", error)
        yield None
        return
    deployer = Deployer(
        fleet,
        device,
        topics=topics,
        ears=control,
        trust=trust,
        store=store,
        downloads=Downloads(topics, control, store),
        serving=serving,
        load=lambda path, name, slot: load_slot(path, name, slot, config.inference),
        admit=lambda spec: admit(spec, admission, inference),
        report=report,
        taken=taken,
    )
    async with deployer:
        await deployer.start_active()
        yield deployer

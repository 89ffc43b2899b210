"""Every time-out and interval of the project, in seconds, each with its reason. Used as `timeouts.NAME`, so that a test
shortens one for everybody who goes by it.
"""

from typing import Final

# ---- storage

STORAGE_RETRY_S: Final = 120.0
"""How long a request is tried again while the storage is busy, late or away. A store that restarts is back by then; a
trial's slot waits meanwhile, so not for longer."""
STORAGE_FIRST_WAIT_S: Final = 0.2
STORAGE_LONGEST_WAIT_S: Final = 10.0
"""Between two attempts: doubled from the first to the longest, each shortened at random by up to a half, so that many
machines do not come back at the same moment."""
STORAGE_CONNECT_S: Final = 5.0
"""How long a store may take to accept a connection: more is a wrong address or a dead network."""
STORAGE_REQUEST_S: Final = 9.0
"""How long a request may go without an answer: late is not dead (the S3 client's own default is 3). To this curl adds
the 5 s that it averages over; STORAGE_CHECK_S is the sum and some, since a process cannot end before its client has given
up."""
STORAGE_CHECK_S: Final = 15.0
"""How long the first look at a storage may take: a dead mount hangs for ever, and a person waits for the answer."""
STORAGE_VISIBLE_S: Final = 5.0
"""How long a mount has to show a file that another machine has just written: NFS caches what a folder holds for some
seconds (`acdirmin`)."""
STORAGE_POLL_S: Final = 0.2
"""Between two looks for that file."""
LEASE_RENEW_S: Final = 15.0
"""How often a driver renews its lease on a folder in object storage: a request that nobody pays for noticeably, and a
second driver on another machine knows after so long that the first one lives."""
LEASE_STALE_S: Final = 4 * LEASE_RENEW_S
"""A lease that was not renewed for so long is nobody's: a store that is late costs a renewal or two, not four in a row."""
LEASE_SETTLE_S: Final = 1.0
"""Between writing a lease and looking whose it is: of two drivers that begin at the same moment the later one's stays."""
LEASE_POLL_S: Final = 1.0
"""Between two looks at another's lease, while it is not known whether its driver lives."""
SCRATCH_KEEP_S: Final = 86400.0
"""How long the scratch folder of a process that was killed stays: for a day somebody may want to see what is in it."""
JOURNAL_LOCK_S: Final = 10.0
"""How long a resume waits for a lock on the study's journal that does not change hands: it is held for one write, and
what stays for longer was left behind by a process that was killed."""
JOURNAL_LOCK_POLL_S: Final = 0.1
"""Between two looks at that lock; also how soon a Ctrl-C ends the wait."""

# ---- the hub

HUB_ANSWER_S: Final = 5.0
"""How long the hub may take to answer at all; asked first, since its client retries for half a minute and more."""

# ---- what a machine keeps

CACHE_KEPT_S: Final = 60 * 24 * 3600.0
"""How long something is kept in the cache that nobody uses: it can be made again, and takes gigabytes."""

FILE_CLOCK_S: Final = 2.0
"""How long after a file was written to its times tell whether it was written to again: FAT's clock ticks so slowly, and NFS
keeps what it knows of a file for about as long."""

# ---- data

READING_LINE_S: Final = 10.0
"""Between two lines of how far the reading of data is, where there is no terminal: often enough to see that it goes on."""

# ---- bitlora serve

SERVE_END_S: Final = 10
"""How long answers that are being written have when a server is told to end: an answer of usual length takes less, and who
stops a container waits for no more. Whole seconds."""

# ---- packs, as the pool sees them

POOL_TICK_S: Final = 1.0
"""How often the pool looks at its packs: what it decides by is counted in seconds."""
POOL_POLL_S: Final = 5.0
"""How long a pack's request for commands is held open before it is answered with none: so the pool sees that it lives."""
PACK_START_LOCAL_S: Final = 180.0
"""How long this machine's own Ray has to find room for a pack: nothing has to be started for that."""
PACK_START_CLUSTER_S: Final = 1800.0
"""How long a cluster has for that: a machine may have to be started, and GPUs are scarce."""
PACK_LATE_S: Final = 10.0
"""A pack whose worker does not run after this may be waiting for a machine, worth a look: workers start in less."""
PACK_LOAD_S: Final = 3600.0
"""How long a pack has to load its base: a large one is fetched from a hub first."""
PACK_IDLE_S: Final = 30.0
"""A pack without a trial ends after this: longer than a searcher takes to propose, shorter than what a machine costs."""
PACK_SURPLUS_S: Final = 10.0
"""A pack that waits for a machine and is not needed is given up after this: the next trials may be on their way."""
PACK_RETRY_S: Final = 30.0
"""No pack is started for so long after one did not come up while others are up: what kept it from that may pass."""
NODE_DEATH_S: Final = 10.0
"""How long a lost machine has to be known as lost, before its pack's death is held against a trial or the sweep: Ray
looks after its machines every few seconds."""
PACK_STOP_S: Final = 120.0
"""How long a pack that was told to end may go without having written one of its last files: they may be large, and the
storage slow."""
PACK_CLOSE_S: Final = 20.0
"""How long packs have to end by themselves when the sweep does: a person may have pressed Ctrl-C."""
POOL_CLOSE_S: Final = 3 * PACK_CLOSE_S
"""How long the pool has to end all packs: to ask them, to kill them, to remove their placement groups."""
REPORT_RETRY_S: Final = 1.0
"""Between two attempts to reach a pool that does not answer: it may be restarting, or its machine busy."""
SLOT_RELEASE_S: Final = 60.0
"""How long a trial's record waits for the pack to have written the trial's last file: half of STORAGE_RETRY_S, after which
the record is written from what is there."""

# ---- a pack from inside

WORKERS_MEET_S: Final = 1.0
"""How long a pack without a trial waits for one, until its workers meet again: a collective that waits for much longer
looks like one that hangs."""
VERDICT_S: Final = 1.0
"""How long, at most, a pack waits after an evaluation for what becomes of its trials. Never longer than a step takes, so
that less is lost than by a step of trials that are to be stopped."""
WORKER_CHECK_S: Final = 0.5
"""How soon Ray Train notices that a worker ended or died; its own default is 2."""

MEMORY_LOOK_S: Final = 0.005
"""Between two looks at how much memory a dry step takes, where the kernel does not keep its peak: the shortest of what
makes a peak, one layer's backward pass, takes about so long."""

# ---- Ray, from the driver

RAY_CONNECT_S: Final = 5.0
"""How long a cluster's or a job server's port may take to accept a connection; Ray itself would try for minutes."""
NODE_TYPES_S: Final = 60.0
"""How long the head may take to say what node types it has: a task there needs a worker process first."""
TUNE_CHECKPOINT_S: Final = 3600.0
"""How often Ray Tune writes its own checkpoint of the search, which nothing here reads: as rarely as it can be told."""
ATTACH_LOOK_S: Final = 0.0
"""Whether the pool has taken a trial is looked at beside its results, and not waited for."""
DISPLAY_REFRESH_S: Final = 1.0
"""How often a person sees something new."""
QUIET_S: Final = 12.0
"""After so long without a line, a sweep whose output goes to a file says what it is doing."""
WATCH_S: Final = 3.0
"""Between two looks of `bitlora status --watch`: trials are evaluated no more often, and a store is listed each time."""
STEER_POLL_S: Final = 2.0
"""How often a driver looks whether somebody wants something of its sweep: a request to a store that nobody pays for
noticeably, and whoever asked waits no longer than for a step."""
STEER_ANSWER_S: Final = 60.0
"""How long whoever steers waits for the driver's answer: it looks every STEER_POLL_S, and may be writing a report."""
STEER_ANSWER_POLL_S: Final = 0.5
"""Between two looks for that answer."""
JOB_POLL_S: Final = 0.2
"""How often a job's state is asked for once its log has ended: it follows in less than a second."""
JOB_STOP_S: Final = 120
"""How long a stopped job has to end in order; Ray's own limit of 3 s would cut it off. Whole seconds."""
GIT_S: Final = 10.0
"""How long git may take to say which commit this is: on a slow file system it looks at every file."""

# ---- machines that are taken away (`sweeps.drain`)

NOTICE_POLL_S: Final = 2.0
"""Between two questions whether the machine is to go: the shortest notice is half a minute, and Azure's own advice is to
ask every second. They go no further than the machine's host."""
NOTICE_ANSWER_S: Final = 2.0
"""How long a metadata service may take to answer: it is on the machine's host. A first question to Azure may take two
minutes, and is asked again meanwhile."""
NOTICE_AWS_S: Final = 120.0
"""How long a machine has at least, by AWS's own word, after a spot notice that does not say."""
NOTICE_GOOGLE_S: Final = 30.0
NOTICE_AZURE_S: Final = 30.0
"""The same after a preemption by Google, and after an event of Azure's that has begun."""
NOTICE_MAINTENANCE_S: Final = 60.0
"""The same before Google maintains a host. With a GPU it says so an hour before; packs leave at once all the same."""
DRAIN_ANSWER_S: Final = 5.0
"""How long Ray's control service may take to answer a request to drain; asked again where it does not."""
DRAINED_POLL_S: Final = 0.2
"""Between two looks whether a drained node has ended: what stops a pod waits for it."""

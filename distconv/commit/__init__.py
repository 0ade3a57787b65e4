"""The target directory: where a result may go, who may work there, and how a result gets its name.

`Staging` is the door: a context in which a target is claimed, written and committed. The rest of the room is what makes
that lose nothing, whatever ends the job.
"""

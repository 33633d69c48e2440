//! cgroups v1 (memory, cpu, pids, freezer controllers, each its own hierarchy) and v2 behind one face.

# What the agent of a confidential guest lets its host do: start the pause container of the guest's own
# image and the program of one image with one of the known command lines; no shell, no input, no other
# policy. Written by `hfl initdata`; fields as kata 4.1 sends them (src/tools/genpolicy/rules.rego).
package agent_policy

import future.keywords.every
import future.keywords.if
import future.keywords.in

default AddARPNeighborsRequest := false
default AddSwapPathRequest := false
default AddSwapRequest := false
default CloseStdinRequest := false
default CopyFileRequest := false
default CreateContainerRequest := false
default CreateSandboxRequest := false
default DestroySandboxRequest := true
default ExecProcessRequest := false
default GetDiagnosticDataRequest := false
default GetIPTablesRequest := false
default GetMetricsRequest := false
default GetOOMEventRequest := true
default GuestDetailsRequest := true
default ListInterfacesRequest := false
default ListRoutesRequest := false
default MemAgentCompactConfig := false
default MemAgentMemcgConfig := false
default MemHotplugByProbeRequest := false
default OnlineCPUMemRequest := true
default PauseContainerRequest := false
default PullImageRequest := false
# kubectl logs.
default ReadStreamRequest := true
default RemoveContainerRequest := true
default RemoveStaleVirtiofsShareMountsRequest := true
default ReseedRandomDevRequest := false
default ResizeVolumeRequest := false
default ResumeContainerRequest := false
# Collateral is judged by the guest's clock.
default SetGuestDateTimeRequest := false
default SetIPTablesRequest := false
default SetPolicyRequest := false
default SignalProcessRequest := true
default StartContainerRequest := true
default StartTracingRequest := false
default StatsContainerRequest := true
default StopTracingRequest := false
default TtyWinResizeRequest := false
default UpdateContainerRequest := false
default UpdateEphemeralMountsRequest := false
default UpdateInterfaceRequest := false
default UpdateRoutesRequest := false
default VolumeStatsRequest := false
default WaitProcessRequest := true
default WriteStreamRequest := false

image := @IMAGE@

# A regular expression a word.
commands := @COMMANDS@

# Where files may appear in the container; the program itself is /hfl.
destinations := @DESTINATIONS@

# Where block devices may appear in the container: no other device of the guest or its host does.
devices := @DEVICES@

# What the kubelet and the runtime mount into every container.
usual := `^/(proc|sys|sys/fs/cgroup|dev|dev/pts|dev/shm|dev/mqueue|dev/termination-log|etc/hosts|etc/hostname|etc/resolv\.conf)$`

bundle := "^/run/kata-containers/[a-z0-9]{64}/rootfs$"

shared := "^/run/kata-containers/(shared/containers|sandbox)/[^.]"

CreateSandboxRequest if {
	count(input.guest_hook_path) == 0
	count(input.kernel_modules) == 0
	input.sandbox_pidns == false
	every storage in input.storages {
		sound_storage(storage)
	}
}

CreateContainerRequest if {
	sound_container
	pulled := [s | some s in input.storages; s.driver == "image_guest_pull"]
	count(pulled) == 1
	pulled[0].mount_point == input.OCI.Root.Path
	pulled[0].source == image
	some command in commands
	count(command) == count(input.OCI.Process.Args)
	every i, word in command {
		regex.match(word, input.OCI.Process.Args[i])
	}
}

# The guest unpacks its own pause image, whatever the source is called, if the request says "sandbox".
CreateContainerRequest if {
	sound_container
	pulled := [s | some s in input.storages; s.driver == "image_guest_pull"]
	count(pulled) == 1
	pulled[0].mount_point == input.OCI.Root.Path
	every option in pulled[0].driver_options {
		startswith(option, "image_guest_pull={")
		contains(option, `"io.kubernetes.cri.container-type":"sandbox"`)
		# Said once and without escapes: the agent's parser lets the last of two decide.
		count(split(option, "container-type")) == 2
	}
	count([o | some o in pulled[0].driver_options; contains(o, `\`)]) == 0
	count(pulled[0].driver_options) > 0
	input.OCI.Process.Args == ["/pause"]
}

sound_container if {
	count(object.get(input, "shared_mounts", [])) == 0
	is_null(object.get(input.OCI, "Hooks", null))
	regex.match(bundle, input.OCI.Root.Path)
	every mount in input.OCI.Mounts {
		known_destination(mount.destination)
	}
	every storage in input.storages {
		sound_storage(storage)
	}
	every device in object.get(input, "devices", []) {
		device.container_path in devices
	}
	# The only variable that the program reads.
	count([v | some v in input.OCI.Process.Env; startswith(v, "RUST_")]) == 0
}

known_destination(path) if regex.match(usual, path)

known_destination(path) if path in destinations

sound_storage(storage) if storage.driver == "image_guest_pull"

# Nothing is put over the guest or over a container's root.
sound_storage(storage) if {
	regex.match(shared, storage.mount_point)
	not contains(storage.mount_point, "..")
}

# ConfigMaps, Secrets and resolv.conf come as copies; they land beside containers, never in them.
CopyFileRequest if {
	regex.match(shared, input.path)
	not contains(input.path, "..")
	input.file_type in ["Regular", "Directory", "Symlink"]
}

# The attestation agent listens on 127.0.0.1: that stays the guest's own.
UpdateInterfaceRequest if {
	input.interface.name != "lo"
	count([a | some a in input.interface.IPAddresses; startswith(a.address, "127.")]) == 0
}

UpdateRoutesRequest if {
	count([r | some r in input.routes.Routes; r.device == "lo"]) == 0
	count([r | some r in input.routes.Routes; startswith(r.dest, "127.")]) == 0
}

AddARPNeighborsRequest if {
	count([n | some n in input.neighbors.ARPNeighbors; n.device == "lo"]) == 0
	count([n | some n in input.neighbors.ARPNeighbors; startswith(n.toIPAddress.address, "127.")]) == 0
}

package main

import "strings"

// registryAddr is where the appliance's own registry listens.
const registryAddr = "127.0.0.1:5918"

// recipe is the small release: an image with the attacks, and the programs.
func recipe(dist string) string {
	return strings.ReplaceAll(`apiVersion: clawbox.io/v1
kind: Recipe
metadata: {name: attack, version: 0.1.0}
sequence: 1
items:
  - {name: attack, kind: image, source: "oci-layout:image:latest", licence: GPL-2.0-only, redistributable: true}
  - {name: clawbox, kind: file, source: "file:DIST/clawbox", path: bin/clawbox, mode: "0755", licence: Apache-2.0, redistributable: true}
  - {name: clawbox-launch, kind: file, source: "file:DIST/clawbox-launch", path: bin/clawbox-launch, mode: "0755", licence: Apache-2.0, redistributable: true}
  - {name: attack-policy, kind: policy, source: "file:prey.yaml", path: policies/prey.yaml, licence: Apache-2.0, redistributable: true}
`, "DIST", dist)
}

const answers = `apiVersion: clawbox.io/v1
kind: Answers
operator: attack
start: none
registry: ` + registryAddr + `
holdSeconds: 5
agents:
  - {name: prey, image: "attack:0.1.0", policy: prey.yaml, args: [/bin/busybox, sleep, "100000"]}
`

// preyPolicy is generous where that makes attacks harder to stop: shells,
// processes, and names that lead to places where they must not.
const preyPolicy = `apiVersion: clawbox.io/v1
kind: AgentPolicy
metadata: {name: prey}
filesystem: {read: [/bin, /etc, /proc, /dev, /data], write: [/workspace, /tmp], workdir: /workspace}
process: {exec: [/bin/busybox, /bin/sh, /bin/attack], spawn: true, seccomp: default}
network:
  default: deny
  allow:
    - {host: allowed.example, ports: [80, 443]}
    - {host: api.example, ports: [80], protocol: http, inspect: false, calls: [{method: GET, path: "/public/**"}]}
    - {host: tools.example, ports: [80], protocol: mcp, inspect: false, calls: [{rpc: initialize}, {tool: [search]}]}
    - {host: bound.example, ports: [80], binaries: [/bin/busybox]}
    - {host: slow.example, ports: [80], budget: {perMinute: 3}}
    - {host: inner.example, ports: [80]}
    - {host: meta.example, ports: [80]}
    - {host: zero.example, ports: [5918]}
    - {host: mapped.example, ports: [5918]}
    - {host: local.example, ports: [5918]}
    - {host: home.example, ports: [5918]}
    - {host: rebind.example, ports: [5918]}
    - {cidr: 10.77.0.0/24, ports: [8080, 6443]}
    - {host: 169.254.169.254, ports: [80]}
    - {host: 127.0.0.1, ports: [5918]}
  deny:
    - {domain: evil.example}
inference: {routes: [{models: [tiny], upstream: local}]}
audit: {network: all}
budgets: {processes: 64, memory: 192MiB, cpu: 0.5, scratch: 16MiB, disk: 64MiB, inodes: 8000, openFiles: 256, wallTime: 2h}
`

const otherPolicy = `apiVersion: clawbox.io/v1
kind: AgentPolicy
metadata: {name: other}
filesystem: {read: [/bin, /etc, /proc, /dev], write: [/workspace, /tmp], workdir: /workspace}
process: {exec: [/bin/busybox, /bin/sh, /bin/attack], spawn: true, seccomp: default}
budgets: {processes: 32, memory: 64MiB, wallTime: 2h}
`

const waiterPolicy = `apiVersion: clawbox.io/v1
kind: AgentPolicy
metadata: {name: waiter}
filesystem: {read: [/bin, /etc, /proc, /dev], write: [/workspace, /tmp], workdir: /workspace}
process: {exec: [/bin/busybox, /bin/sh, /bin/attack], spawn: true, seccomp: default}
network: {default: hold, deny: [{domain: evil.example}]}
budgets: {processes: 32, memory: 64MiB, wallTime: 2h}
`

// lonePolicy is for a program that starts no other: the profile strict.
const lonePolicy = `apiVersion: clawbox.io/v1
kind: AgentPolicy
metadata: {name: lone}
filesystem: {read: [/bin, /etc, /proc, /dev], write: [/workspace, /tmp], workdir: /workspace}
process: {exec: [/bin/busybox, /bin/sh, /bin/attack], spawn: false, seccomp: strict}
budgets: {processes: 32, memory: 64MiB, wallTime: 2h}
`

// agentPolicies are those of the agents that have one of their own; every other
// has prey's.
var agentPolicies = map[string]string{other: otherPolicy, waiter: waiterPolicy, lone: lonePolicy}

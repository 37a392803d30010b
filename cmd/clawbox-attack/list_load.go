package main

// loads try to take more than the budget: from the host, from others, or from
// the guard's attention.
var loads = []attack{
	{name: "fork-bomb", tries: "start 500 processes", args: []string{"fork-bomb", "500"}, want: errno("EAGAIN"), records: []record{{Kind: "lifecycle", Reason: "budget.processes"}}},
	{name: "memory-bomb", tries: "take 1 GiB", args: []string{"memory-bomb", "1024"}, want: killed("ENOMEM"), records: []record{{Kind: "lifecycle", Reason: "budget.memory"}}, control: uncontrolled("it would take the memory of the host that runs this")},
	{name: "fill-tmp", tries: "fill /tmp with 64 MiB", args: []string{"fill", "/tmp", "64"}, want: errno("ENOSPC", "EDQUOT"), records: []record{{Kind: "lifecycle", Reason: "budget.tmp"}}},
	{name: "inodes-tmp", tries: "a million files in /tmp", args: []string{"inodes", "/tmp", "1000000"}, want: errno("ENOSPC", "EDQUOT"), records: []record{{Kind: "lifecycle", Reason: "budget.inodes"}}, control: uncontrolled("it takes minutes")},
	{name: "fill-disk", tries: "fill the workspace with 600 MiB", args: []string{"fill", "/workspace", "600"}, want: errno("ENOSPC", "EDQUOT"), records: []record{{Kind: "lifecycle", Reason: "budget.disk"}}, control: uncontrolled("the control's workspace is memory")},
	{name: "inodes-disk", tries: "300,000 files in the workspace", args: []string{"inodes", "/workspace", "300000"}, want: errno("ENOSPC", "EDQUOT"), records: []record{{Kind: "lifecycle", Reason: "budget.inodes"}}, control: uncontrolled("it takes minutes")},
	{name: "descriptors", tries: "open 5,000 files", args: []string{"descriptors", "5000"}, want: errno("EMFILE"), silent: "a limit of the process itself, which it may also read"},
	{name: "spin", tries: "two processors' time from half a one", args: []string{"spin"}, want: errno("EAGAIN"), silent: "slower is no refusal", control: uncontrolled("how much time there is depends on who else runs")},
	{name: "deep-tree", tries: "folders deeper than a path can name", args: []string{"deep", "/workspace", "100000"}, want: errno("ENOSPC", "EDQUOT"), records: []record{{Kind: "lifecycle", Reason: "budget.inodes"}}, control: uncontrolled("it takes minutes")},
	{name: "refusal-flood", tries: "fill the guard's queue, then try something", args: []string{"refusals", "/secret/flag", "100000"}, want: errno("EACCES"), records: []record{file("/secret/noise"), file("/secret/flag")}},
}

package installer

import (
	"fmt"
	"path"
	"slices"

	"github.com/clawbox/clawbox/policies"
)

// releaseChecks hold the answers against the release.
var releaseChecks = []check{
	{"profile", "", "", func(q question) Finding {
		return verdict(slices.Contains(Profiles, q.a.Profile), Refusal, q.a.Profile, "one of "+list(Profiles), "answer one of those")
	}},
	{"answers", "", "", func(q question) Finding {
		err := q.a.Validate()
		if err == nil {
			err = q.a.Config(q.r).Validate()
		}
		if err != nil {
			return Finding{Severity: Refusal, Got: err.Error(), Wanted: "answers that make a valid configuration", Remedy: "correct the answers"}
		}
		return Finding{Severity: OK, Got: "complete"}
	}},
	{"programs", "", "", func(q question) Finding {
		var miss []string
		for _, p := range []string{mainPath, launcherPath} {
			it, ok := q.r.program(p)
			if !ok || it.perm()&0o100 == 0 {
				miss = append(miss, p)
			}
		}
		return lacking("missing or not executable:", miss, "file items with path "+mainPath+" and "+launcherPath+", mode 0755", "rebuild the bundle with them")
	}},
	{"places", "", "", places},
	{"platforms", "", "", func(q question) Finding {
		var miss []string
		for _, it := range q.r.kind("image") {
			if len(it.Platforms) > 0 && !slices.Contains(it.Platforms, "linux/"+q.Arch) {
				miss = append(miss, it.Name+" ("+list(it.Platforms)+")")
			}
		}
		return lacking("not for linux/"+q.Arch+":", miss, "images for this machine", "rebuild the bundle with this platform")
	}},
	{"agents", "", "", agentsExist},
	{"agent-policies", "", "", policiesExist},
	{"models", "", "", func(q question) Finding {
		var names []string
		for _, it := range q.r.kind("model") {
			names = append(names, it.Name)
		}
		miss := missing(q.a.Engine.Models, names)
		return lacking("not in the release:", miss, "of "+list(names), "correct engine.models")
	}},
	{"engine", "", "", func(q question) Finding {
		_, has := q.r.program(enginePath)
		switch {
		case q.a.Engine.Listen != "" && !has:
			return verdict(false, Refusal, "engine.listen, but no "+enginePath+" in the release", "both or neither", "remove engine.listen, or bundle the engine")
		case has && q.a.Engine.Listen == "":
			return inform("the release has an engine; the answers leave it unused")
		case !has:
			return inform("no embedded engine; agents need upstreams for models")
		}
		return Finding{Severity: OK, Got: q.a.Engine.Listen}
	}},
	{"licences", "", "", func(q question) Finding {
		var own []string
		for _, it := range q.r.Items {
			if !it.Redistributable {
				own = append(own, it.Name)
			}
		}
		if len(own) == 0 {
			return Finding{Severity: OK, Got: "everything may be passed on"}
		}
		return inform("not marked as redistributable: " + list(own) + "; keep these media to yourself")
	}},
}

// places refuses two items for one path, and paths that leave the slot.
func places(q question) Finding {
	seen := map[string]string{}
	for _, it := range q.r.slotItems() {
		p := it.place()
		if path.IsAbs(p) || path.Clean(p) != p || p == ".." || len(p) > 3 && p[:3] == "../" {
			return verdict(false, Refusal, fmt.Sprintf("%s at %q", it.Name, p), "a clean path inside the slot", "rebuild the bundle")
		}
		if it.Kind == "policy" && path.Dir(p) != "policies" {
			return verdict(false, Refusal, fmt.Sprintf("%s at %q", it.Name, p), "policies below policies/, where the appliance looks", "rebuild the bundle")
		}
		if other, ok := seen[p]; ok {
			return verdict(false, Refusal, other+" and "+it.Name+" both at "+p, "one item per path", "rebuild the bundle")
		}
		seen[p] = it.Name
	}
	return Finding{Severity: OK, Got: fmt.Sprintf("%d files", len(seen))}
}

func agentsExist(q question) Finding {
	var refs, miss []string
	for _, it := range q.r.kind("image") {
		refs = append(refs, it.Ref)
	}
	for _, a := range q.a.Agents {
		if !slices.Contains(refs, a.Image) {
			miss = append(miss, a.Name+": "+a.Image)
		}
	}
	if len(q.a.Agents) == 0 {
		return inform("no agent; add some to the configuration later")
	}
	return lacking("images not in the release:", miss, "of "+list(refs), "correct agents")
}

func policiesExist(q question) Finding {
	names := policies.Presets()
	for _, it := range q.r.kind("policy") {
		names = append(names, it.PolicyName())
	}
	var miss []string
	for _, a := range q.a.Agents {
		if !slices.Contains(names, a.Policy) {
			miss = append(miss, a.Name+": "+a.Policy)
		}
	}
	return lacking("policies not in the release:", miss, "of "+list(names), "correct agents")
}

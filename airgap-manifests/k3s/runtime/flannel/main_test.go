package main

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

const env = "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"

// k3sConf is what K3s 1.35 writes for this plugin, as containerd passes it on.
const k3sConf = `{"cniVersion":"1.0.0","name":"cbr0","type":"flannel","delegate":{"hairpinMode":true,"forceAddress":true,"isDefaultGateway":true}}`

func TestDelegate(t *testing.T) {
	plugin, conf, err := delegate([]byte(k3sConf), env)
	if err != nil || plugin != "bridge" {
		t.Fatal(plugin, err)
	}
	var got, want any
	if err := json.Unmarshal(conf, &got); err != nil {
		t.Fatal(err)
	}
	err = json.Unmarshal([]byte(`{"cniVersion":"1.0.0","name":"cbr0","type":"bridge","isGateway":true,"hairpinMode":true,"forceAddress":true,
		"isDefaultGateway":true,"ipMasq":false,"mtu":1450,
		"ipam":{"type":"host-local","ranges":[[{"subnet":"10.42.1.0/24"}]],"routes":[{"dst":"10.42.0.0/16"}]}}`), &want)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %s (%v)", conf, err)
	}
}

func TestSubnetErrors(t *testing.T) {
	for _, c := range []struct{ old, new, want string }{
		{"FLANNEL_MTU=1450", "", `FLANNEL_MTU=""`},
		{"FLANNEL_IPMASQ=true", "FLANNEL_IPMASQ=perhaps", `"perhaps"`},
		{"10.42.1.1/24", "10.43.1.1/24", "is not in"},
		{"10.42.0.0/16", "10.42.0.0", "FLANNEL_NETWORK"},
	} {
		_, _, err := delegate([]byte(k3sConf), strings.Replace(env, c.old, c.new, 1))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q for %q: %v, want an error with %q", c.new, c.old, err, c.want)
		}
	}
	if _, _, err := delegate([]byte(`{"delegate":{"type":7}}`), env); err == nil || !strings.Contains(err.Error(), "delegate.type") {
		t.Errorf("a plugin that is a number: %v", err)
	}
}

package storage

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

var here = Node{Name: "a", Labels: map[string]string{"zone": "1", corev1.LabelHostname: "a"}}

func claim(size string, options ...func(*Claim)) *Claim {
	c := &Claim{Key: ClaimKey("default", "data"), Spec: &corev1.PersistentVolumeClaimSpec{
		AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}},
	}}
	for _, o := range options {
		o(c)
	}
	return c
}

func wants(class string) func(*Claim) { return func(c *Claim) { c.Class = &class } }

func named(volume string) func(*Claim) { return func(c *Claim) { c.Spec.VolumeName = volume } }

func selecting(key, value string) func(*Claim) {
	return func(c *Claim) { c.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{key: value}} }
}

func block(c *Claim) { m := corev1.PersistentVolumeBlock; c.Spec.VolumeMode = &m }

func modes(m ...corev1.PersistentVolumeAccessMode) func(*Claim) {
	return func(c *Claim) { c.Spec.AccessModes = m }
}

func vol(name, size, class string, options ...func(*Volume)) *Volume {
	v := &Volume{Name: name, Class: class, Spec: &corev1.PersistentVolumeSpec{
		Capacity:    corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)},
		AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
	}}
	for _, o := range options {
		o(v)
	}
	return v
}

func with(m ...corev1.PersistentVolumeAccessMode) func(*Volume) {
	return func(v *Volume) { v.Spec.AccessModes = m }
}

func labelled(key, value string) func(*Volume) {
	return func(v *Volume) { v.Labels = map[string]string{key: value} }
}

func reserved(namespace, name, uid string) func(*Volume) {
	return func(v *Volume) {
		v.Spec.ClaimRef = &corev1.ObjectReference{Namespace: namespace, Name: name, UID: types.UID(uid)}
	}
}

func had(name string) func(*Volume) { return func(v *Volume) { v.Claim = ClaimKey("default", name) } }

func inZone(zone string) func(*Volume) {
	return func(v *Volume) {
		v.Spec.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
			MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "zone", Operator: corev1.NodeSelectorOpIn, Values: []string{zone}}},
		}}}}
	}
}

func class(name, provisioner string, delayed, standard bool) *storagev1.StorageClass {
	c := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: provisioner}
	if delayed {
		m := storagev1.VolumeBindingWaitForFirstConsumer
		c.VolumeBindingMode = &m
	}
	if standard {
		c.Annotations = map[string]string{"storageclass.kubernetes.io/is-default-class": "true"}
	}
	return c
}

func TestDecide(t *testing.T) {
	rwx := []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce, corev1.ReadWriteMany}
	tests := map[string]struct {
		claim   *Claim
		classes []*storagev1.StorageClass
		volumes []*Volume
		// volume or class is what is chosen, waits a part of why neither is.
		volume, class, waits string
	}{
		"the smallest that fits":          {claim: claim("2Gi", wants("m")), volumes: []*Volume{vol("a", "9Gi", "m"), vol("b", "3Gi", "m"), vol("c", "1Gi", "m")}, volume: "b"},
		"the first of equals":             {claim: claim("2Gi", wants("m")), volumes: []*Volume{vol("a", "3Gi", "m"), vol("b", "3Gi", "m")}, volume: "a"},
		"the fewest modes before size":    {claim: claim("2Gi", wants("m")), volumes: []*Volume{vol("a", "3Gi", "m", with(rwx...)), vol("b", "9Gi", "m")}, volume: "b"},
		"all modes are granted":           {claim: claim("2Gi", wants("m"), modes(rwx...)), volumes: []*Volume{vol("a", "9Gi", "m"), vol("b", "9Gi", "m", with(rwx...))}, volume: "b"},
		"another class":                   {claim: claim("2Gi", wants("m")), volumes: []*Volume{vol("a", "9Gi", "n")}, waits: "there is no StorageClass m"},
		"another mode":                    {claim: claim("2Gi", wants("m"), block), volumes: []*Volume{vol("a", "9Gi", "m")}, waits: "no PersistentVolume of class m fits"},
		"the selector":                    {claim: claim("1Gi", wants("m"), selecting("k", "v")), volumes: []*Volume{vol("a", "1Gi", "m"), vol("b", "9Gi", "m", labelled("k", "v"))}, volume: "b"},
		"one that another had":            {claim: claim("1Gi", wants("m")), volumes: []*Volume{vol("a", "1Gi", "m", had("other"))}, waits: "no PersistentVolume of class m fits"},
		"reserved for another":            {claim: claim("1Gi", wants("m")), volumes: []*Volume{vol("a", "1Gi", "m", reserved("default", "other", ""))}, waits: "no PersistentVolume of class m fits"},
		"reserved for it, of any class":   {claim: claim("1Gi", wants("m")), volumes: []*Volume{vol("a", "1Gi", "m"), vol("b", "9Gi", "", reserved("default", "data", ""))}, volume: "b"},
		"reserved and too small":          {claim: claim("2Gi", wants("m")), volumes: []*Volume{vol("b", "1Gi", "m", reserved("default", "data", ""))}, waits: "fits"},
		"reserved in another namespace":   {claim: claim("1Gi", wants("")), volumes: []*Volume{vol("b", "1Gi", "", reserved("x", "data", ""))}, waits: "no PersistentVolume without a class fits"},
		"reserved with a uid":             {claim: claim("1Gi", named("b"), wants("")), volumes: []*Volume{vol("b", "1Gi", "", reserved("default", "data", "7"))}, waits: "remove the uid"},
		"by name":                         {claim: claim("1Gi", named("b"), wants("m"), selecting("k", "v")), volumes: []*Volume{vol("a", "1Gi", "m"), vol("b", "9Gi", "m")}, volume: "b"},
		"by name, missing":                {claim: claim("1Gi", named("b"), wants("m")), volumes: []*Volume{vol("a", "1Gi", "m")}, waits: "there is no PersistentVolume b"},
		"by name, too small":              {claim: claim("2Gi", named("b"), wants("m")), volumes: []*Volume{vol("b", "1Gi", "m")}, waits: "has 1Gi, less than the 2Gi"},
		"by name, another class":          {claim: claim("1Gi", named("b"), wants("m")), volumes: []*Volume{vol("b", "1Gi", "n")}, waits: `has storageClassName "n", the claim "m"`},
		"by name, other modes":            {claim: claim("1Gi", named("b"), wants("m"), modes(rwx...)), volumes: []*Volume{vol("b", "1Gi", "m")}, waits: "access modes"},
		"by name, bound":                  {claim: claim("1Gi", named("b"), wants("m")), volumes: []*Volume{vol("b", "1Gi", "m", had("other"))}, waits: "is bound to PersistentVolumeClaim default/other"},
		"by name, though the class waits": {claim: claim("1Gi", named("b"), wants("local")), volumes: []*Volume{vol("b", "1Gi", "local")}, volume: "b"},

		"the built-in default waits for a pod":         {claim: claim("1Gi"), waits: waitsForConsumer},
		"… and for no volume without class":            {claim: claim("1Gi"), volumes: []*Volume{vol("a", "1Gi", "")}, waits: waitsForConsumer},
		"no class at all":                              {claim: claim("1Gi", wants("")), volumes: []*Volume{vol("a", "1Gi", "")}, volume: "a"},
		"a default of Git":                             {claim: claim("1Gi"), classes: []*storagev1.StorageClass{class("fast", nodes.LocalProvisioner, false, true)}, volumes: []*Volume{vol("a", "1Gi", "")}, class: "fast"},
		"the first default by name":                    {claim: claim("1Gi"), classes: []*storagev1.StorageClass{class("z", nodes.LocalProvisioner, false, true), class("b", nodes.LocalProvisioner, false, true)}, class: "b"},
		"Git takes the built-in name":                  {claim: claim("1Gi"), classes: []*storagev1.StorageClass{class("local", nodes.LocalProvisioner, false, false)}, waits: "no StorageClass is marked as default"},
		"Immediate makes one":                          {claim: claim("1Gi", wants("fast")), classes: []*storagev1.StorageClass{class("fast", "rancher.io/local-path", false, false)}, class: "fast"},
		"Immediate prefers one that is there":          {claim: claim("1Gi", wants("fast")), classes: []*storagev1.StorageClass{class("fast", nodes.LocalProvisioner, false, false)}, volumes: []*Volume{vol("a", "2Gi", "fast")}, volume: "a"},
		"a selector can't be provisioned for":          {claim: claim("1Gi", wants("fast"), selecting("k", "v")), classes: []*storagev1.StorageClass{class("fast", nodes.LocalProvisioner, false, false)}, waits: "matches the selector"},
		"the default class of another cluster":         {claim: claim("1Gi", wants("local-path")), waits: waitsForConsumer},
		"a cloud's provisioner":                        {claim: claim("1Gi", wants("gp2")), classes: []*storagev1.StorageClass{class("gp2", "kubernetes.io/aws-ebs", true, false)}, waits: "does not run here"},
		"a driver that runs":                           {claim: claim("1Gi", wants("csi")), classes: []*storagev1.StorageClass{class("csi", "hostpath.csi.k8s.io", false, false)}, class: "csi"},
		"a driver that does not":                       {claim: claim("1Gi", wants("csi")), classes: []*storagev1.StorageClass{class("csi", "ebs.csi.aws.com", false, false)}, waits: "no node runs this driver"},
		"volumes of a class without provisioner only":  {claim: claim("1Gi", wants("man")), classes: []*storagev1.StorageClass{class("man", noProvisioner, false, false)}, waits: "the class makes none"},
		"a class without provisioner waits for a pod":  {claim: claim("1Gi", wants("man")), classes: []*storagev1.StorageClass{class("man", noProvisioner, true, false)}, volumes: []*Volume{vol("a", "1Gi", "man")}, waits: waitsForConsumer},
		"a cloud's class with volumes waits for a pod": {claim: claim("1Gi", wants("gp2")), classes: []*storagev1.StorageClass{class("gp2", "kubernetes.io/aws-ebs", true, false)}, volumes: []*Volume{vol("a", "1Gi", "gp2")}, waits: waitsForConsumer},
	}
	on := here
	on.Drivers = []string{"hostpath.csi.k8s.io"}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got := Decide(test.claim, NewClasses(test.classes), test.volumes, []Node{on})
			var volume, class string
			if got.Volume != nil {
				volume = got.Volume.Name
			}
			if got.Class != nil {
				class = got.Class.Name
			}
			if volume != test.volume || class != test.class || !strings.Contains(got.Waits, test.waits) || (got.Waits == "") != (test.waits == "") {
				t.Errorf("volume %q, class %q, waits: %q", volume, class, got.Waits)
			}
			if got.Consumer != (test.waits == waitsForConsumer) {
				t.Error("does not know whether only a pod is missing")
			}
		})
	}
}

func TestFit(t *testing.T) {
	limited := class("limited", nodes.LocalProvisioner, true, false)
	limited.AllowedTopologies = []corev1.TopologySelectorTerm{{MatchLabelExpressions: []corev1.TopologySelectorLabelRequirement{{Key: "zone", Values: []string{"2"}}}}}
	second := claim("3Gi", wants("m"))
	second.Key.Name = "more"
	held := vol("v", "1Gi", "local", had("data"))
	held.Node = "b"
	tests := map[string]struct {
		bound   []*Volume
		open    []*Claim
		volumes []*Volume
		bars    []Bar
		// want is the choices as claim=volume or claim+class.
		want, refusal string
	}{
		"makes one":                           {open: []*Claim{claim("1Gi")}, want: "data+local"},
		"a volume without class before":       {open: []*Claim{claim("1Gi")}, volumes: []*Volume{vol("a", "1Gi", "")}, want: "data=a"},
		"the smallest that the node reaches":  {open: []*Claim{claim("1Gi", wants("m"))}, volumes: []*Volume{vol("a", "1Gi", "m", inZone("2")), vol("b", "2Gi", "m", inZone("1"))}, want: "data=b"},
		"none that it reaches":                {open: []*Claim{claim("1Gi", wants("m"))}, volumes: []*Volume{vol("a", "1Gi", "m", inZone("2"))}, refusal: "has no PersistentVolume that fits claim data"},
		"the smaller claim first, one each":   {open: []*Claim{second, claim("1Gi", wants("m"))}, volumes: []*Volume{vol("a", "3Gi", "m"), vol("b", "4Gi", "m")}, want: "data=a more=b"},
		"not one for two":                     {open: []*Claim{second, claim("1Gi", wants("m"))}, volumes: []*Volume{vol("a", "3Gi", "m")}, refusal: "claim more"},
		"outside of the topologies":           {open: []*Claim{claim("1Gi", wants("limited"))}, refusal: "is outside of the topologies that StorageClass limited allows"},
		"a driver that is not there":          {open: []*Claim{claim("1Gi", wants("csi"))}, refusal: "does not run the storage driver x.csi of StorageClass csi"},
		"bound elsewhere":                     {bound: []*Volume{held}, refusal: "does not hold volume v of claim data, which is on node b"},
		"bound, another zone":                 {bound: []*Volume{vol("a", "1Gi", "m", inZone("2"))}, refusal: "does not match the node affinity of volume a"},
		"bound, in use on another node":       {bound: []*Volume{vol("a", "1Gi", "m")}, bars: []Bar{{Node: "b"}}, refusal: "is not node b, where volume a is in use"},
		"bound, in use on this node":          {bound: []*Volume{vol("a", "1Gi", "m")}, bars: []Bar{{Node: "a"}}},
		"a selector can't be provisioned for": {open: []*Claim{claim("1Gi", wants("local"), selecting("k", "v"))}, refusal: "the selector of claim data"},
	}
	classes := NewClasses([]*storagev1.StorageClass{limited, class("csi", "x.csi", true, false), class("m", noProvisioner, true, false)})
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			choices, refusal := NewDemand(test.bound, test.open, classes, test.volumes, map[string][]Bar{"a": test.bars}).Fit(here)
			var got []string
			for _, c := range choices {
				if c.Volume != nil {
					got = append(got, c.Claim.Key.Name+"="+c.Volume.Name)
				} else {
					got = append(got, c.Claim.Key.Name+"+"+c.Class.Name)
				}
			}
			if strings.Join(got, " ") != test.want || !strings.Contains(refusal, test.refusal) || (refusal == "") != (test.refusal == "") {
				t.Errorf("%v, refused: %q", got, refusal)
			}
		})
	}
}

// Whatever claims and volumes there are: no volume goes to two claims, one that
// is chosen serves its claim, and the order of the claims' volumes in memory
// changes nothing.
func TestDataSources(t *testing.T) {
	local := NewClasses([]*storagev1.StorageClass{{ObjectMeta: metav1.ObjectMeta{Name: "now"}, Provisioner: nodes.LocalProvisioner}})
	begins := func(o Origin) func(*Claim) {
		o.Name = "VolumeSnapshot s"
		return func(c *Claim) { c.Origin = &o }
	}
	ready := Origin{Provisioner: nodes.LocalProvisioner, Node: "a"}
	free := []*Volume{vol("free", "1Gi", "now")}
	there := Node{Name: "b"}
	for name, c := range map[string]struct {
		claim *Claim
		on    []Node
		want  string
		stuck bool
	}{
		"made, though a volume is free": {claim("1Gi", wants("now"), begins(ready)), []Node{there, here}, "class now on a", false},
		"waits":                         {claim("1Gi", wants("now"), begins(Origin{Waits: "not ready"})), []Node{here}, "not ready", false},
		"waits for a class that waits":  {claim("1Gi", begins(Origin{Waits: "never", Stuck: true})), []Node{here}, "never", true},
		"its node is away":              {claim("1Gi", wants("now"), begins(ready)), []Node{there}, "waiting for node a", false},
		"of a driver":                   {claim("1Gi", wants("now"), begins(Origin{Provisioner: "csi"})), []Node{here}, "name a class of the same provisioner", true},
	} {
		t.Run(name, func(t *testing.T) {
			v := Decide(c.claim, local, free, c.on)
			got := v.Waits
			if v.Class != nil {
				got = "class " + v.Class.Name + " on " + v.Nodes[0].Name
			}
			if v.Volume != nil || !strings.Contains(got, c.want) || v.Stuck != c.stuck {
				t.Errorf("%+v", v)
			}
			_, refusal := NewDemand(nil, []*Claim{c.claim}, local, free, nil).Fit(there)
			if refusal == "" {
				t.Error("a node without the source takes the pod")
			}
		})
	}
	choices, refusal := NewDemand(nil, []*Claim{claim("1Gi", begins(ready))}, local, free, nil).Fit(here)
	if refusal != "" || len(choices) != 1 || choices[0].Volume != nil || choices[0].Class == nil {
		t.Errorf("%+v, %s", choices, refusal)
	}
}

func TestChoicesServeTheirClaims(t *testing.T) {
	sizes, classNames := []string{"1Gi", "2Gi", "3Gi"}, []string{"", "m", "local"}
	allModes := [][]corev1.PersistentVolumeAccessMode{{corev1.ReadWriteOnce}, {corev1.ReadWriteMany}, {corev1.ReadWriteOnce, corev1.ReadWriteMany}}
	rapid.Check(t, func(t *rapid.T) {
		var volumes []*Volume
		for i := range rapid.IntRange(0, 6).Draw(t, "volumes") {
			v := vol(string(rune('a'+i)), rapid.SampledFrom(sizes).Draw(t, "size"), rapid.SampledFrom(classNames).Draw(t, "class"), with(rapid.SampledFrom(allModes).Draw(t, "modes")...))
			switch rapid.IntRange(0, 3).Draw(t, "state") {
			case 1:
				v.Claim = ClaimKey("default", "other")
			case 2:
				inZone(rapid.SampledFrom([]string{"1", "2"}).Draw(t, "zone"))(v)
			}
			volumes = append(volumes, v)
		}
		var open []*Claim
		for i := range rapid.IntRange(1, 4).Draw(t, "claims") {
			c := claim(rapid.SampledFrom(sizes).Draw(t, "size"), wants(rapid.SampledFrom(classNames).Draw(t, "class")), modes(rapid.SampledFrom(allModes).Draw(t, "modes")...))
			c.Key.Name = string(rune('p' + i))
			open = append(open, c)
		}
		classes := NewClasses([]*storagev1.StorageClass{class("m", noProvisioner, true, false)})
		choices, refusal := NewDemand(nil, open, classes, volumes, nil).Fit(here)
		if (refusal == "") != (len(choices) == len(open)) {
			t.Fatalf("%d choices for %d claims, refused: %q", len(choices), len(open), refusal)
		}
		given := map[string]desired.Key{}
		for _, c := range choices {
			if c.Volume == nil {
				continue
			}
			if other, twice := given[c.Volume.Name]; twice {
				t.Fatalf("volume %s goes to %s and %s", c.Volume.Name, other, c.Claim.Key)
			}
			given[c.Volume.Name] = c.Claim.Key
			size, capacity := c.Claim.Size(), c.Volume.Capacity()
			if capacity.Cmp(size) < 0 || c.Volume.Class != *c.Claim.Class || !c.Volume.Claim.IsZero() || !c.Volume.Admits(here) || !grants(c.Volume.Spec.AccessModes, c.Claim.Spec.AccessModes) {
				t.Fatalf("volume %s can't serve claim %s", c.Volume.Name, c.Claim.Key)
			}
		}
		slices.Reverse(open)
		again, _ := NewDemand(nil, open, classes, volumes, nil).Fit(here)
		for i := range again {
			if again[i].Claim.Key != choices[i].Claim.Key || again[i].Volume != choices[i].Volume {
				t.Fatal("the order of the claims changes the choice")
			}
		}
	})
}

// TestLimits counts what a node would have of a driver's volumes.
func TestLimits(t *testing.T) {
	classes := NewClasses([]*storagev1.StorageClass{class("csi", "x.csi", true, false)})
	of := func(name, driver string) *Volume {
		v := vol(name, "1Gi", "csi")
		v.CSI = driver
		return v
	}
	limited := func(most int64, having ...string) Node {
		n := here
		n.Drivers, n.DriverNodes = []string{"x.csi"}, []nodes.DriverNode{{Name: "x.csi", MaxVolumes: most}}
		n.Having = func(driver string) map[string]bool {
			out := map[string]bool{}
			for _, name := range having {
				out[name] = driver == "x.csi"
			}
			return out
		}
		return n
	}
	for name, test := range map[string]struct {
		bound  []*Volume
		open   []*Claim
		on     Node
		refuse bool
	}{
		"room":                  {bound: []*Volume{of("a", "x.csi")}, on: limited(2, "b")},
		"full":                  {bound: []*Volume{of("a", "x.csi")}, on: limited(2, "b", "c"), refuse: true},
		"there already":         {bound: []*Volume{of("a", "x.csi")}, on: limited(2, "a", "b")},
		"there, beyond":         {bound: []*Volume{of("a", "x.csi")}, on: limited(2, "a", "b", "c")},
		"no bound":              {bound: []*Volume{of("a", "x.csi")}, on: limited(0, "b", "c")},
		"of another driver":     {bound: []*Volume{of("a", "y.csi")}, on: limited(1, "b")},
		"of no driver":          {bound: []*Volume{of("a", "")}, on: limited(1, "b")},
		"to be made":            {open: []*Claim{claim("1Gi", wants("csi"))}, on: limited(1), refuse: false},
		"to be made, full":      {open: []*Claim{claim("1Gi", wants("csi"))}, on: limited(1, "b"), refuse: true},
		"more than there is of": {bound: []*Volume{of("a", "x.csi")}, open: []*Claim{claim("1Gi", wants("csi"))}, on: limited(1), refuse: true},
		"too many already":      {bound: nil, open: nil, on: limited(1, "a", "b")},
	} {
		t.Run(name, func(t *testing.T) {
			_, why := NewDemand(test.bound, test.open, classes, nil, nil).Fit(test.on)
			if got := strings.Contains(why, "volumes that storage driver x.csi allows there"); got != test.refuse || why != "" && !got {
				t.Errorf("the node %q", why)
			}
		})
	}
}

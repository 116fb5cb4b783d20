package manifest

import (
	"fmt"
	"testing"
)

// repository is n manifests: a third each of deployments, services and config maps.
func repository(n int) map[string]string {
	files := make(map[string]string, n)
	for i := range n / 3 {
		dir := fmt.Sprintf("apps/%d", i)
		files[dir+"-config.yaml"] = fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: app-%d\ndata:\n  LEVEL: info\n  URL: http://app-%d\n", i, i)
		files[dir+"-service.yaml"] = fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata:\n  name: app-%d\nspec:\n  selector:\n    app: app-%d\n    tier: web\n  ports:\n    - port: 80\n      targetPort: http\n", i, i)
		files[dir+"-deployment.yaml"] = deployment(i, "1")
	}
	return files
}

func deployment(i int, tag string) string {
	return fmt.Sprintf(`apiVersion: apps/v1
kind: Deployment
metadata:
  name: app-%[1]d
  labels:
    app: app-%[1]d
    tier: web
spec:
  replicas: 2
  selector:
    matchLabels:
      app: app-%[1]d
      tier: web
  template:
    metadata:
      labels:
        app: app-%[1]d
        tier: web
    spec:
      containers:
        - name: app
          image: registry.example.com/app:%[2]s
          envFrom:
            - configMapRef:
                name: app-%[1]d
          ports:
            - name: http
              containerPort: 8080
          readinessProbe:
            httpGet:
              path: /ready
              port: http
          resources:
            requests:
              cpu: 10m
              memory: 16Mi
`, i, tag)
}

func BenchmarkFirstLoad(b *testing.B) {
	for _, n := range []int{999, 4998} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			files := newTree(repository(n))
			for b.Loop() {
				if s := mustLoad(b, NewLoader(), files, LoadOptions{}); s.Len() != n {
					b.Fatalf("%d objects", s.Len())
				}
			}
		})
	}
}

func BenchmarkOneFileChanged(b *testing.B) {
	for _, n := range []int{999, 4998} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			l := NewLoader()
			files := newTree(repository(n))
			previous := mustLoad(b, l, files, LoadOptions{})
			for i := 0; b.Loop(); i++ {
				b.StopTimer()
				next := files.with("apps/7-deployment.yaml", deployment(7, fmt.Sprint(i)))
				b.StartTimer()
				previous = mustLoad(b, l, next, LoadOptions{Previous: previous})
			}
		})
	}
}
